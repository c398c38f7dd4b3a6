"""Export a run's data set, model and adapters, each with a card, to a folder or a hub.

Invariants:
- It reads only the run folder, through `store`: no cluster, no configuration file; also from an object store.
- Exports contain no machine paths, no keys, and no address beyond an endpoint's host.
- The same run exports to the same bytes.
"""
