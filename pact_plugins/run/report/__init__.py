"""Did it hold? One page for the person who trained, and for the one who reviews the result."""
