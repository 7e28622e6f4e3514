"""How a finished picture is named, saved, described and made again."""
