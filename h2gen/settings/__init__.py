"""What a picture is made from: options, user defaults, presets and profiles become one resolved request."""
