"""Response headers of services: transport security, content policies, fixed headers and cross-origin rules."""
