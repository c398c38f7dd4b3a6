"""The basis of all other packages: records, the run folder, errors, progress. Knows no model, no API and no Ray."""
