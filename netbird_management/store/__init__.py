"""The store: tables, migrations, transactions, secrets at rest."""
