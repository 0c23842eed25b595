"""The store on disk: folders of stage runs by signature, and the leases that give each folder one writer."""
