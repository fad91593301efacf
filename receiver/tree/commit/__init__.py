"""From the bytes of a small file to final names in the destination."""
