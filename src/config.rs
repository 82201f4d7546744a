//! `oncache.toml`: schema, defaults, validation with line-precise errors.
