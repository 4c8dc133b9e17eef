"""How well a model predicts text: what quantizing cost."""
