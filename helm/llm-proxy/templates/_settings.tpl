{{/*
The settings of llm-proxy as environment variables. A secret is never among them: it is a file, and the variable names
the file (`MANAGEMENT_TOKEN_FILE`).
*/}}

{{/* What every command needs that touches the database. */}}
{{- define "llm-proxy.databaseEnv" -}}
{{- $secrets := "/run/secrets/llm-proxy" -}}
- name: DB_DRIVER
  value: {{ .Values.database.driver }}
- name: DATABASE_PATH
  value: /data/llm-proxy.db
{{- if ne .Values.database.driver "sqlite" }}
- name: DATABASE_URL_FILE
  value: {{ $secrets }}/database-url
{{- end }}
- name: DATABASE_POOL_SIZE
  value: {{ int .Values.database.poolSize | quote }}
{{- with .Values.database.tls }}
{{- if or .ca.configMap .ca.secret }}
- name: DATABASE_TLS_CA
  value: /run/secrets/database-tls/ca.crt
{{- end }}
{{- if .clientCertificateSecret }}
- name: DATABASE_TLS_CERT
  value: /run/secrets/database-tls/tls.crt
- name: DATABASE_TLS_KEY
  value: /run/secrets/database-tls/tls.key
{{- end }}
{{- end }}
{{- end -}}

{{/* What a server needs beside it. */}}
{{- define "llm-proxy.serverEnv" -}}
{{- $secrets := "/run/secrets/llm-proxy" -}}
- name: LISTEN_ADDR
  value: ":8080"
- name: WORKERS
  value: {{ int .Values.workers | quote }}
- name: SHUTDOWN_GRACE
  value: {{ int .Values.shutdown.graceSeconds }}s
{{- $given := include "llm-proxy.secretKeys" . | fromYaml }}
{{- if $given.managementToken }}
- name: MANAGEMENT_TOKEN_FILE
  value: {{ $secrets }}/management-token
{{- end }}
{{- if $given.encryptionKey }}
- name: ENCRYPTION_KEY_FILE
  value: {{ $secrets }}/encryption-key
{{- end }}
{{- if .Values.secrets.allowPlaintextApiKeys }}
- name: ALLOW_PLAINTEXT_API_KEYS
  value: "true"
{{- end }}
{{- if or .Values.providers.config .Values.providers.existingConfigMap }}
- name: API_CONFIG_PATH
  value: /etc/llm-proxy/providers.yaml
{{- end }}
{{- if or .Values.prices.config .Values.prices.existingConfigMap }}
- name: PRICES_PATH
  value: /etc/llm-proxy-prices/prices.yaml
{{- end }}
{{- if .Values.tls.enabled }}
- name: ENABLE_TLS
  value: "true"
- name: TLS_CERT_FILE
  value: /run/secrets/tls/tls.crt
- name: TLS_KEY_FILE
  value: /run/secrets/tls/tls.key
{{- end }}
{{- end -}}

{{/* What the user of the chart adds: `config`, in the order of names, and `extraEnv`. */}}
{{- define "llm-proxy.furtherEnv" -}}
{{- range $name, $value := .Values.config }}
{{- if not (kindIs "invalid" $value) }}
- name: {{ $name }}
  value: {{ include "llm-proxy.text" $value | quote }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Where the three secrets are, as YAML: the `secret` and `key` of each that this release has.
*/}}
{{- define "llm-proxy.secretKeys" -}}
{{- $own := printf "%s-secrets" (include "llm-proxy.fullname" .) -}}
{{- $database := include "llm-proxy.inCluster" . | fromYaml -}}
{{- $found := dict -}}
{{- with .Values.secrets -}}
{{- if .create -}}
{{- range $name := list "managementToken" "encryptionKey" "databaseUrl" -}}
{{- if index $.Values.secrets $name -}}
{{- $_ := set $found $name (dict "secret" $own "key" $name) -}}
{{- end -}}
{{- end -}}
{{- else if .existingSecret -}}
{{- range $name, $key := .keys -}}
{{- if $key -}}
{{- $_ := set $found $name (dict "secret" $.Values.secrets.existingSecret "key" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.database.driver "sqlite" -}}
{{- $_ := unset $found "databaseUrl" -}}
{{- else if $database -}}
{{- $existing := index .Values $database.kind "existingSecret" -}}
{{- $_ := set $found "databaseUrl" (dict "secret" ($existing | default $database.name) "key" "database-url") -}}
{{- else if .Values.database.existingSecret -}}
{{- $_ := set $found "databaseUrl" (dict "secret" .Values.database.existingSecret "key" .Values.database.key) -}}
{{- else if and .Values.secrets.existingSecret (not .Values.secrets.create) -}}
{{- $_ := set $found "databaseUrl" (dict "secret" .Values.secrets.existingSecret "key" .Values.database.key) -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}
