"""What each part of NAS gains: runs over variants, worlds and seeds, and the page they make."""
