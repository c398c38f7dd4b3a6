"""Every prompt that goes to an API: the templates, and the messages made from them. Pure."""
