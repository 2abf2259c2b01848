"""The output bucket: images, the manifest, superseded objects, and the lease of an output prefix."""
