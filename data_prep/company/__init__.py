"""The world a support assistant works in, read from a company pack (a folder of data)."""
