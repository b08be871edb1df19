"""What runs inside the containers: the six steps and the store in which they meet."""
