"""The `guerdon` command; every tree adds its subcommands through an entry point."""
