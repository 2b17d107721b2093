"""Messages and images -> token ids, one renderer class per model family; `collapse` and `expand`."""
