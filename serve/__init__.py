"""The exported model behind an OpenAI-shaped door. Needs no trl, and nothing of training/."""
