"""One frozen dataclass per component, and the loader."""
