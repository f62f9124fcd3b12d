"""Build the demo zoo: fetch sources, draw images, pre-train, fine-tune, measure, publish."""
