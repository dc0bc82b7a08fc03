"""The synthetic world: truth lives in tables, text is rendered from them."""
