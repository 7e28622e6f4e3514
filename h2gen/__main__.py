from h2gen.cli import main

main()
