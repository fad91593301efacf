"""What is known of each entry of the manifest."""
