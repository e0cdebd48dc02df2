"""Pages of their own: claims held against campaigns, and the accuracy of the load generator."""
