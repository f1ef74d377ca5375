"""The throttleable networks, their training, their exact cost, and the outcome atlas."""

__all__: list[str] = []
