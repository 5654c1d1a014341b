"""The log and the head: the only room where Redis lives. It knows no torch."""
