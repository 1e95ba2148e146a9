"""fedfields: federated learning of neural fields, and what the updates reveal."""
