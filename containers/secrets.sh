#!/bin/sh
# Makes the secrets of compose.yaml, each in a file of its own in containers/secrets; those that exist stay as they are.
#
#   containers/secrets.sh
#   POSTGRES_PASSWORD=secret MYSQL_PASSWORD=secret containers/secrets.sh      databases with passwords of your choice
#
# The folder is for its owner alone. The files in it can be read by all who get that far: a container's user, who is
# somebody else than the one that ran this, reads them through a mount of the file.
set -eu
umask 077
folder=$(dirname "$0")/secrets
mkdir -p "$folder"

# Letters, digits, - and _ only: such a value needs no escaping in a URL.
random() { head -c 32 /dev/urandom | base64 | tr -d '\n=' | tr '+/' '-_'; }

keep() {
    if [ ! -s "$folder/$1" ]; then
        printf '%s' "$2" > "$folder/.new"
        chmod 0444 "$folder/.new"
        mv "$folder/.new" "$folder/$1"
        echo "made $folder/$1"
    fi
}

# What has a meaning of its own in a URL would have to be escaped; Go's form for MySQL takes a password as it is.
password=${POSTGRES_PASSWORD:-}
[ ! -s "$folder/postgres-password" ] || password=$(cat "$folder/postgres-password")
case $password in
    *[!A-Za-z0-9._~-]*)
        echo "POSTGRES_PASSWORD: letters, digits, '.', '_', '~' and '-' only: it becomes a part of a URL" >&2
        exit 2 ;;
esac

keep management-token "$(random)"
keep encryption-key "$(head -c 32 /dev/urandom | base64 | tr -d '\n')"
keep grafana-password "$(random)"
keep postgres-password "${POSTGRES_PASSWORD:-$(random)}"
keep mysql-password "${MYSQL_PASSWORD:-$(random)}"

keep postgres-url "postgres://llmproxy:$(cat "$folder/postgres-password")@postgres:5432/llmproxy?sslmode=disable"
keep mysql-url "llmproxy:$(cat "$folder/mysql-password")@tcp(mysql:3306)/llmproxy?parseTime=true&tls=skip-verify"
