{{/*
The in-cluster databases: FOR DEVELOPMENT AND TESTING ONLY. One pod each, whatever the values say: no high availability,
no failover, no backup. In production use a managed service: RDS, Aurora, Cloud SQL, Azure Database.

Takes the root, `kind` (`postgresql` or `mysql`) and what differs: `port`, `path` of the data, `env`, `secrets` and
which `keys` of them it reads, `scratch` folders, and the command of the probes. Both official images have their user at
999.
*/}}
{{- define "llm-proxy.statefulDatabase" -}}
{{- $root := .root -}}
{{- $values := index .root.Values .kind -}}
{{- $name := printf "%s-%s" (include "llm-proxy.fullname" .root) .kind -}}
{{- $object := dict "root" .root "component" .kind "name" $name -}}
{{- if not $values.existingSecret -}}
apiVersion: v1
kind: Secret
metadata:
  {{- include "llm-proxy.metadata" $object | nindent 2 }}
type: Opaque
stringData:
  {{- .secrets | nindent 2 }}
---
{{ end -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "llm-proxy.metadata" $object | nindent 2 }}
spec:
  clusterIP: None
  selector:
    {{- include "llm-proxy.selector" $object | nindent 4 }}
  ports:
    - name: {{ .kind }}
      port: {{ .port }}
      targetPort: {{ .kind }}
---
# FOR DEVELOPMENT AND TESTING ONLY: no high availability, no failover, no backup.
apiVersion: apps/v1
kind: StatefulSet
metadata:
  {{- include "llm-proxy.metadata" $object | nindent 2 }}
spec:
  # More would be databases that know nothing of each other.
  replicas: 1
  serviceName: {{ $name }}
  selector:
    matchLabels:
      {{- include "llm-proxy.selector" $object | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "llm-proxy.labels" $object | nindent 8 }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with include "llm-proxy.placement" $root | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 999
        runAsGroup: 999
        fsGroup: 999
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile:
          type: RuntimeDefault
      terminationGracePeriodSeconds: 60
      containers:
        - name: {{ .kind }}
          image: {{ $values.image.repository }}:{{ $values.image.tag }}
          env:
            {{- .env | nindent 12 }}
          ports:
            - name: {{ .kind }}
              containerPort: {{ .port }}
          # Over TCP: while a first start sets the database up, only a socket of its own is open.
          startupProbe:
            exec:
              command: {{ toJson .probe }}
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: 60
          livenessProbe:
            exec:
              command: {{ toJson .probe }}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            exec:
              command: {{ toJson .probe }}
            periodSeconds: 5
            timeoutSeconds: 5
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          volumeMounts:
            - name: data
              mountPath: {{ .path }}
            - name: secrets
              mountPath: /run/secrets/{{ .kind }}
              readOnly: true
            {{- range $folder, $path := .scratch }}
            - name: {{ $folder }}
              mountPath: {{ $path }}
            {{- end }}
      volumes:
        - name: secrets
          secret:
            secretName: {{ $values.existingSecret | default $name }}
            defaultMode: 0440
            items:
              {{- range .keys }}
              - key: {{ . }}
                path: {{ . }}
              {{- end }}
        {{- range $folder, $path := .scratch }}
        - name: {{ $folder }}
          emptyDir: {}
        {{- end }}
        {{- if not $values.persistence.enabled }}
        - name: data
          emptyDir: {}
        {{- end }}
  {{- if $values.persistence.enabled }}
  volumeClaimTemplates:
    - apiVersion: v1
      kind: PersistentVolumeClaim
      metadata:
        name: data
        labels:
          {{- include "llm-proxy.selector" $object | nindent 10 }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $values.persistence.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests:
            storage: {{ $values.persistence.size }}
  {{- end }}
{{- end -}}
