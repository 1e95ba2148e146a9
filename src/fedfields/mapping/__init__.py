"""The large-scale map (Suzuki 2023): sparse voxels in global metres, to which contributions are merged as they come."""
