"""Speed and memory of a model beside the limits of the device; `gqkva bench`."""
