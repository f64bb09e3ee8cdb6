"""The program that makes the built-in model `doodle`: it draws a world and learns to paint in it. Never served."""
