"""lion-ray: adversarial distillation of closed language models as one resumable Ray job."""

__version__ = "0.1.0"
