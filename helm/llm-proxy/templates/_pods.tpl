{{/* What all pods of this chart have in common. */}}

{{/* Sidecars, each with the server's security context where it brings none. Takes the root. */}}
{{- define "llm-proxy.sidecars" -}}
{{- $always := semverCompare ">=1.29-0" .Capabilities.KubeVersion.Version -}}
{{- $made := list -}}
{{- range .Values.sidecars -}}
{{- $sidecar := deepCopy . -}}
{{- if not $sidecar.securityContext -}}
{{- $_ := set $sidecar "securityContext" $.Values.securityContext -}}
{{- end -}}
{{- if $always -}}
{{- $_ := set $sidecar "restartPolicy" "Always" -}}
{{- end -}}
{{- $made = append $made $sidecar -}}
{{- end -}}
{{- toYaml $made -}}
{{- end -}}

{{/* Whether this Kubernetes starts sidecars before, and ends them after, the container that they serve. */}}
{{- define "llm-proxy.hasNativeSidecars" -}}
{{- if and .Values.sidecars (semverCompare ">=1.29-0" .Capabilities.KubeVersion.Version) -}}true{{- end -}}
{{- end -}}

{{/* Where pods may run. Takes the root. */}}
{{- define "llm-proxy.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Spread over zones and nodes, as far as it can be had; of each version by itself, where Kubernetes can. */}}
{{- define "llm-proxy.spread" -}}
{{- if .Values.topologySpreadConstraints -}}
{{ toYaml .Values.topologySpreadConstraints }}
{{- else -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "llm-proxy.selector" (dict "root" $ "component" "server") | nindent 6 }}
  {{- if semverCompare ">=1.27-0" $.Capabilities.KubeVersion.Version }}
  matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Takes `root` and `path`. */}}
{{- define "llm-proxy.look" -}}
httpGet:
  path: {{ .path }}
  port: http
  {{- if .root.Values.tls.enabled }}
  scheme: HTTPS
  {{- end }}
{{- end -}}
