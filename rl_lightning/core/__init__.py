"""The words that every room speaks: types, spaces, errors, names."""
