"""What a conversation is, what personal data is, what the company is. Imports no torch."""
