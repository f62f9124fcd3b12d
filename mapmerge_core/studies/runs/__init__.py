"""Everything that computes: preparing merges, measuring points, executing runs, exporting models."""
