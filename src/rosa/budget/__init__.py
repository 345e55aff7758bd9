"""What a method trains and what that takes: parameters, memory and time, without weights."""
