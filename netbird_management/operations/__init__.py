"""Operations on the store: one module per resource, one transaction per call."""
