{{/*
Volumes of pods, and where containers have them. Both take `root` and `serving`: a server has all of them, other pods
only what they need to talk to the database.
*/}}

{{- define "llm-proxy.wantedKeys" -}}
{{- $keys := include "llm-proxy.secretKeys" .root | fromYaml -}}
{{- ternary $keys (pick $keys "databaseUrl") .serving | toYaml -}}
{{- end -}}

{{- define "llm-proxy.volumes" -}}
{{- $root := .root -}}
{{- $files := dict "managementToken" "management-token" "encryptionKey" "encryption-key" "databaseUrl" "database-url" -}}
{{- $keys := include "llm-proxy.wantedKeys" . | fromYaml -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- if $keys }}
- name: secrets
  projected:
    # Read by the server's group, which `fsGroup` makes theirs.
    defaultMode: 0440
    sources:
      {{- range $name, $place := $keys }}
      - secret:
          name: {{ $place.secret }}
          items:
            - key: {{ $place.key }}
              path: {{ index $files $name }}
      {{- end }}
{{- end }}
{{- with .root.Values.database.tls }}
{{- if or .ca.configMap .ca.secret .clientCertificateSecret }}
- name: database-tls
  projected:
    defaultMode: 0440
    sources:
      {{- if or .ca.configMap .ca.secret }}
      - {{ ternary "configMap" "secret" (ne .ca.configMap "") }}:
          name: {{ .ca.configMap | default .ca.secret }}
          items:
            - key: {{ .ca.key }}
              path: ca.crt
      {{- end }}
      {{- with .clientCertificateSecret }}
      - secret:
          name: {{ . }}
          items:
            - key: tls.crt
              path: tls.crt
            - key: tls.key
              path: tls.key
      {{- end }}
{{- end }}
{{- end }}
{{- if .serving }}
- name: data
  {{- if and (eq .root.Values.database.driver "sqlite") .root.Values.sqlite.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ include "llm-proxy.claimName" .root }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- with .root.Values.providers }}
{{- if or .config .existingConfigMap }}
- name: providers
  configMap:
    name: {{ .existingConfigMap | default (printf "%s-providers" (include "llm-proxy.fullname" $root)) }}
    items:
      - key: {{ ternary .key "providers.yaml" (ne .existingConfigMap "") }}
        path: providers.yaml
{{- end }}
{{- end }}
{{- with .root.Values.prices }}
{{- if or .config .existingConfigMap }}
- name: prices
  configMap:
    name: {{ .existingConfigMap | default (printf "%s-prices" (include "llm-proxy.fullname" $root)) }}
    items:
      - key: {{ ternary .key "prices.yaml" (ne .existingConfigMap "") }}
        path: prices.yaml
{{- end }}
{{- end }}
{{- with .root.Values.identityTokens }}
- name: identity-tokens
  projected:
    defaultMode: 0440
    sources:
      {{- range . }}
      - serviceAccountToken:
          path: {{ .name }}
          audience: {{ .audience | quote }}
          expirationSeconds: {{ .expirationSeconds | default 3600 | int }}
      {{- end }}
{{- end }}
{{- with .root.Values.tls }}
{{- if .enabled }}
- name: tls
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "llm-proxy.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "llm-proxy.wantedKeys" . | fromYaml }}
- name: secrets
  mountPath: /run/secrets/llm-proxy
  readOnly: true
{{- end }}
{{- with .root.Values.database.tls }}
{{- if or .ca.configMap .ca.secret .clientCertificateSecret }}
- name: database-tls
  mountPath: /run/secrets/database-tls
  readOnly: true
{{- end }}
{{- end }}
{{- if .serving }}
- name: data
  mountPath: /data
{{- with .root.Values.providers }}
{{- if or .config .existingConfigMap }}
- name: providers
  mountPath: /etc/llm-proxy
  readOnly: true
{{- end }}
{{- end }}
{{- with .root.Values.prices }}
{{- if or .config .existingConfigMap }}
- name: prices
  mountPath: /etc/llm-proxy-prices
  readOnly: true
{{- end }}
{{- end }}
{{- if .root.Values.identityTokens }}
- name: identity-tokens
  mountPath: /var/run/secrets/tokens
  readOnly: true
{{- end }}
{{- if .root.Values.tls.enabled }}
- name: tls
  mountPath: /run/secrets/tls
  readOnly: true
{{- end }}
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
