"""Push-T behind one small interface: single steps, pictures of any state, many episodes at once."""
