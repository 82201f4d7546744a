# The daemon's word that it is ready does not reach the service manager: the unit is being activated for ever.

start_all()
for machine in machines:
    machine.succeed(
        "mkdir -p /run/systemd/system/oncache.service.d",
        "printf '[Service]\\nUnsetEnvironment=NOTIFY_SOCKET\\n' >/run/systemd/system/oncache.service.d/unready.conf",
        "systemctl daemon-reload",
        "systemctl restart --no-block oncache.service",
    )
    machine.wait_until_succeeds("systemctl show -P ActiveState oncache.service | grep activating", timeout=30)
