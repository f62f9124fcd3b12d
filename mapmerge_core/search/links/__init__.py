"""Links: what turns a quadratic form into a metric that stays inside its bounds; one module each."""
