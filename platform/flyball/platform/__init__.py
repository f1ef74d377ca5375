"""platform"""

__all__: list[str] = []
