"""Generation: loops and rules that turn a model's predictions into text and images."""
