"""cachefs: VM images in object storage, mounted as files through a local SSD cache."""
