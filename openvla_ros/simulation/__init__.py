"""A simulated WidowX at a table: world, picture, scripted expert, and episodes in a loop. The only room that knows MuJoCo."""
