"""Where state is kept: tables, migrations, transactions, secrets at rest."""
