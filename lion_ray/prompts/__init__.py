"""The prompts for APIs: templates, and the messages made from them. Pure."""
