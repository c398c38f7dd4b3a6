"""What every room stands on: records, the run folder, errors, progress. Knows no model, no API and no Ray."""
