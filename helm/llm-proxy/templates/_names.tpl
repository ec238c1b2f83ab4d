{{/* What objects are called, and the labels by which they find each other. */}}

{{- define "llm-proxy.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that `-postgresql-0` and the like still fit into a label. */}}
{{- define "llm-proxy.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Takes `root` and `component`: what a selector compares. Never changes from one version to the next. */}}
{{- define "llm-proxy.selector" -}}
app.kubernetes.io/name: {{ include "llm-proxy.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Takes `root` and `component`. */}}
{{- define "llm-proxy.labels" -}}
{{ include "llm-proxy.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Takes `root`, `component` and `name`. */}}
{{- define "llm-proxy.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "llm-proxy.labels" . | nindent 2 }}
{{- end -}}

{{- define "llm-proxy.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llm-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "llm-proxy.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "llm-proxy.claimName" -}}
{{- .Values.sqlite.persistence.existingClaim | default (printf "%s-data" (include "llm-proxy.fullname" .)) -}}
{{- end -}}

{{/* The in-cluster database of this release as YAML: `kind`, `name`, `port`, `connections`; empty where it has none. */}}
{{- define "llm-proxy.inCluster" -}}
{{- if .Values.postgresql.enabled -}}
kind: postgresql
name: {{ include "llm-proxy.fullname" . }}-postgresql
port: 5432
# PostgreSQL's default of 100, less three that are kept for its superuser.
connections: 97
{{- else if .Values.mysql.enabled -}}
kind: mysql
name: {{ include "llm-proxy.fullname" . }}-mysql
port: 3306
# MySQL's default.
connections: 151
{{- end -}}
{{- end -}}
