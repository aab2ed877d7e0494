"""What one does with a trained system."""
