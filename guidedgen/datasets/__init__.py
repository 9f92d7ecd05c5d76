"""A dataset is a frozen dataclass with `tasks()`, a sequence of Task."""
